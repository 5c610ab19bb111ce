"""Reading and writing of LoRA files."""
