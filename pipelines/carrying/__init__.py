"""What is not changed is copied from the release before, not made again, with the bytes of a fresh build."""
