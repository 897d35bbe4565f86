"""`switchlora evaluate`: how good a finished model is on a text, and on the standard tasks of lm-eval."""
