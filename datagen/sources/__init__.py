"""Head sources: each module opens one with `open_source`, and `datagen.config.SOURCES` names them."""
