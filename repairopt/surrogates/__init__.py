"""Parts of the quadratic model of a property: fits, kinds, convexification."""
