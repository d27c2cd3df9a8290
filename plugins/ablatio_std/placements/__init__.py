"""Where the norms stand around a sublayer, and how the residual is scaled: one module per family."""
