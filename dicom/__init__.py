"""DICOM: series of an archive as volumes, and back."""
