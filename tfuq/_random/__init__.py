"""All that makes or fixes random numbers."""
