"""Whether bounds hold on new data: rows told apart, cross-validation, claims with their confidence."""
