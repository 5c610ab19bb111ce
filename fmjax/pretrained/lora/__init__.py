"""LoRA files: tensor names, layouts, reading and writing."""
