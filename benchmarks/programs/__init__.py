"""Programs in SGLang's frontend language, whose answers can be checked: they ask in the recall language."""
