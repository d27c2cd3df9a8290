"""What tokens enter as: narrow token tables, second tables, and embeddings that know the tokens before."""
