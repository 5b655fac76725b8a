"""Where poses go: messages, the publisher, pose lines and annotated video."""
