"""Images and labels on disk, and the door they come through."""
