"""What the detectors of personal data find in labelled sentences, and what they miss."""
