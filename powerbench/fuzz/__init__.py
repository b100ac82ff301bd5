"""Random problems of power attention against float64, in processes that may die: `powerbench verify --random`."""
