"""`fmjax study`: several trainings, measured alike."""
