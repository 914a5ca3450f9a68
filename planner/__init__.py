"""What we choose: which plans are legal, what each would take, which is best. Never imports torch."""
