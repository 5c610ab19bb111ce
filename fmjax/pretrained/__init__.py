"""Released models: folders of diffusers, their weights in and out."""
