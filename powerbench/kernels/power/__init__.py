"""Power attention: feature maps, references in PyTorch, Triton kernels and the operator `power_attention`."""
