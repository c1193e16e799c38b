"""The rule lab: rules of the product on two language models, scenes as notes in place of videos."""
