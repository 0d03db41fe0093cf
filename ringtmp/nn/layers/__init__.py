"""The kinds of layers: every class here with a `kind` is known by it (`ringtmp.nn.layer_spec.LAYERS`)."""
