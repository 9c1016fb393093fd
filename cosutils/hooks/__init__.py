"""The thin core: contexts that look at, edit and repeat a call of an unmodified diffusers pipeline."""
