"""`switchlora finetune`: what a pre-trained model is worth on the tasks of GLUE."""
