"""What is a leaf, and which of its methods are its cut; one module per family of classes, none of which imports the framework."""
