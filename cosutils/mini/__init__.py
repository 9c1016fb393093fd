"""The embedded model: its world, tasks, codec, training and scores."""
