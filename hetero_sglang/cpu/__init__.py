"""Plain SGLang on a machine without a GPU: engine, defaults, sgl_kernel stand-in, paged slots, grammars."""
