from hypothesis import settings

# The same examples on every machine, and no clock: a busy machine is not a failure.
settings.register_profile("geometry", deadline=None, derandomize=True)
settings.load_profile("geometry")
