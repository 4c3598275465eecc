"""Predictions, whoever made them: probabilities, labels, scores, uncertainty."""
