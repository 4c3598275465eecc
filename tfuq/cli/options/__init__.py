"""Arguments of the commands: they import nothing of TensorFlow, so that help comes at once."""
