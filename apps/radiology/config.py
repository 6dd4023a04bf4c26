"""What is particular to radiology: the app's name and description. Settings and their defaults are loop.config's."""

NAME = "NextSlice radiology"
DESCRIPTION = "Active learning on volumes and slices of volumes: asks for what now matters most"
VERSION = "0.1.0"
