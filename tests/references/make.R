# Reference numbers for the statistics of polysem, from R and its packages:
#   Rscript make.R FOLDER     (FOLDER: this one; packages sandwich, lme4, clubSandwich, sna)
# Reads inputs.csv (made by make_inputs.py) and writes regressions.csv, adjusted.csv, mixed.csv and qap.csv.
suppressPackageStartupMessages({library(sandwich); library(lme4); library(clubSandwich); library(sna)})
options(digits = 17)
folder <- commandArgs(trailingOnly = TRUE)[1]
read <- function(name) read.csv(file.path(folder, name))
write <- function(table, name) write.csv(format(table, digits = 17), file.path(folder, name), row.names = FALSE, quote = FALSE)

# Clustered covariances of y ~ x + z, one-way, two-way (Cameron, Gelbach, Miller), CRV1, and dyadic by its definition.
rows <- list()
for (case in unique(read("inputs.csv")$case)) {
  d <- read("inputs.csv"); d <- d[d$case == case, ]
  fit <- lm(y ~ x + z, data = d)
  one <- function(cluster) diag(vcovCL(fit, cluster = cluster, type = "HC1", cadjust = TRUE))
  target <- one(d$target); source <- one(d$source)
  both <- diag(vcovCL(fit, cluster = ~ target + source, data = d, type = "HC1", cadjust = TRUE, multi0 = FALSE))
  cr1 <- diag(vcovCR(fit, cluster = d$target, type = "CR1S"))
  cr3 <- function(cluster) diag(vcovCR(fit, cluster = cluster, type = "CR3"))
  u <- estfun(fit); B <- solve(crossprod(model.matrix(fit)))
  # Pairs of rows with one feature in common, counted once for each; then without what two in common count twice.
  shared <- once <- matrix(0, ncol(u), ncol(u))
  for (a in seq_len(nrow(d))) for (b in seq_len(nrow(d))) {
    common <- length(intersect(c(d$target[a], d$source[a]), c(d$target[b], d$source[b])))
    shared <- shared + common * outer(u[a, ], u[b, ])
    if (common == 2) once <- once + outer(u[a, ], u[b, ])
  }
  n <- nrow(d); k <- ncol(u); G <- length(unique(c(d$target, d$source)))
  D <- nrow(unique(t(apply(d[, c("target", "source")], 1, sort))))
  factor <- function(g) g / (g - 1) * (n - 1) / (n - k)
  dyadic <- diag(B %*% (factor(G) * shared - factor(D) * once) %*% B)
  rows[[case]] <- data.frame(case = case, term = names(coef(fit)), estimate = coef(fit), target = target, source = source,
                             both = both, cr1s = cr1, dyadic = dyadic, cr3_target = cr3(d$target), cr3_source = cr3(d$source),
                             cr3_both = cr3(paste(d$target, d$source)))
}
regressions <- do.call(rbind, rows)
# Second reference: pyfixest (make_pyfixest.py), as a column.
if (file.exists(file.path(folder, "pyfixest.csv"))) regressions$pyfixest <- read("pyfixest.csv")$both
write(regressions, "regressions.csv")

# Adjusted p values.
p <- read("p.csv")$p
write(data.frame(p = p, holm = p.adjust(p, "holm"), bh = p.adjust(p, "BH"), by = p.adjust(p, "BY")), "adjusted.csv")

# Crossed random intercepts, by REML.
d <- read("inputs.csv"); d <- d[d$case == "crossed", ]
fit <- lmer(y ~ x + z + (1 | target) + (1 | source), data = d, REML = TRUE,
            control = lmerControl(optimizer = "bobyqa", optCtrl = list(rhobeg = 1e-3, rhoend = 1e-9, maxfun = 1e5)))
write(data.frame(term = names(fixef(fit)), estimate = fixef(fit), se = sqrt(diag(as.matrix(vcov(fit)))),
                 sd_target = attr(VarCorr(fit)$target, "stddev"), sd_source = attr(VarCorr(fit)$source, "stddev"),
                 sd_residual = sigma(fit)), "mixed.csv")

# QAP with double semi-partialling on a square matrix, 4,000 permutations.
m <- read("matrix.csv"); n <- max(m$i)
fill <- function(v) { M <- matrix(0, n, n); M[cbind(m$i, m$j)] <- v; M }
set.seed(1)
q <- netlm(fill(m$y), list(fill(m$x), fill(m$z)), nullhyp = "qapspp", reps = 4000, mode = "digraph")
write(data.frame(term = c("intercept", "x", "z"), estimate = q$coefficients, p = q$pgreqabs), "qap.csv")
