"""Integer programs: few weights, few broken samples, weights on a grid."""
