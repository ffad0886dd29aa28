"""What `twistlm doctor` finds out. Nothing here imports torch before it is known that this can be done."""
