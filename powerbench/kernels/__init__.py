"""Attention kernels: powerbench's own and the adapters of others. `table` lists them all."""
