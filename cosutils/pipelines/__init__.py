"""What a pipeline is: its kinds, how it is loaded, its schedules and presets, its adapters and its text."""
