// What the tables' short names stand for, the same in every view.
export const RELATIONS = { pair: "interfering features", random_feature: "random features", random_direction: "random directions", self: "the target itself", isotropic: "isotropic directions", cosine_matched: "directions of the same cosine", high_attribution: "features of high attribution", swapped_target: "pushes with another target read", rotated: "rotated neurons" };
export const TOKENS = { in: "tokens that activate the target", out: "tokens the target writes" };
export const KINDS = { pair: "k-pair", self: "k-self", random_feature: "k-random_feature", random_direction: "k-random_direction" };
