"""Read and write run folders, load config files and sample from trained runs."""
