"""What is predicted from what."""
