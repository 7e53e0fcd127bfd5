from . import more_sources as more_sources  # adds its families to those of `sources`
