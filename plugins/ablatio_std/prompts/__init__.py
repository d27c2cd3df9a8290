"""How a question is put to a model: shots, steps of reasoning, votes, decompositions, searched prompts."""
