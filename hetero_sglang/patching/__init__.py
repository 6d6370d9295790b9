"""SGLang's source with our seams in it, for those who build it or cannot load plugins (docs/patches.md)."""
