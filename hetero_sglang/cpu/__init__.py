"""Plain SGLang on a machine without a GPU: engine choice, a stand-in for sgl_kernel, paged slots, grammars."""
