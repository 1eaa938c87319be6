"""Left of the profile: everything that needs a device, and the facts recorded beside the samples."""
