/* The inner loops of an update on the CPU, for float32: the optimizer's, the output heads' and the averaging rules'.

   What they compute is defined by the tensor operations of optim.py, heads.py and averaging.py, which the tests hold them to, and
   which serve where these do not: on a GPU, in other precisions, where no compiler was at hand. A network of some
   thousand parameters is updated here in the time that torch takes to start two operations.

   Sums run over LANES partial sums, which any compiler turns into vector instructions without reordering anything:
   the result is the same on every processor. Build without contraction of a*b + c and without fast math. */

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

/* The same code for wider vectors, chosen when the library is loaded. */
#if defined(__x86_64__) && defined(__gnu_linux__) && defined(__GNUC__) && !defined(__clang__)
#define CLONES __attribute__((target_clones("avx2", "default")))
#else
#define CLONES
#endif

enum { LANES = 16 };

/* Sums of n products, four times LANES of them: sums[row][lane] = Σ_i factors[row][i] · x[i · stride + lane].

   In variables of a register's size, each loaded and stored by itself: an array of them compilers keep in memory. */
#if defined(__GNUC__)
typedef float Four __attribute__((vector_size(16)));
typedef float FourAnywhere __attribute__((vector_size(16), aligned(4), may_alias));

static inline void products_of_two(float *sums, int64_t n, const float *f, const float *g, const float *x, int64_t stride) {
    Four a = {0}, b = {0}, c = {0}, d = {0}, A = {0}, B = {0}, C = {0}, D = {0};
    for (int64_t i = 0; i < n; i++, x += stride) {
        const FourAnywhere *v = (const FourAnywhere *)x;
        a += f[i] * v[0], b += f[i] * v[1], c += f[i] * v[2], d += f[i] * v[3];
        A += g[i] * v[0], B += g[i] * v[1], C += g[i] * v[2], D += g[i] * v[3];
    }
    FourAnywhere *to = (FourAnywhere *)sums;
    to[0] = a, to[1] = b, to[2] = c, to[3] = d, to[4] = A, to[5] = B, to[6] = C, to[7] = D;
}
#else
static inline void products_of_two(float *sums, int64_t n, const float *f, const float *g, const float *x, int64_t stride) {
    memset(sums, 0, 2 * LANES * sizeof(float));
    for (int64_t i = 0; i < n; i++, x += stride)
        for (int l = 0; l < LANES; l++) sums[l] += f[i] * x[l], sums[LANES + l] += g[i] * x[l];
}
#endif

#if defined(__GNUC__) && defined(__x86_64__)
typedef float Eight __attribute__((vector_size(32)));
typedef float EightAnywhere __attribute__((vector_size(32), aligned(4), may_alias));

__attribute__((target("avx2"))) static void products_wide(
    float *sums, int64_t n, const float *const *factors, const float *x, int64_t stride
) {
    const float *f = factors[0], *g = factors[1], *h = factors[2], *k = factors[3];
    Eight a = {0}, b = {0}, c = {0}, d = {0}, A = {0}, B = {0}, C = {0}, D = {0};
    for (int64_t i = 0; i < n; i++, x += stride) {
        const EightAnywhere *v = (const EightAnywhere *)x;
        a += f[i] * v[0], A += f[i] * v[1], b += g[i] * v[0], B += g[i] * v[1];
        c += h[i] * v[0], C += h[i] * v[1], d += k[i] * v[0], D += k[i] * v[1];
    }
    EightAnywhere *to = (EightAnywhere *)sums;
    to[0] = a, to[1] = A, to[2] = b, to[3] = B, to[4] = c, to[5] = C, to[6] = d, to[7] = D;
}
#endif

static void products(float *sums, int64_t n, const float *const *factors, const float *x, int64_t stride) {
#if defined(__GNUC__) && defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) {
        products_wide(sums, n, factors, x, stride);
        return;
    }
#endif
    products_of_two(sums, n, factors[0], factors[1], x, stride);
    products_of_two(sums + 2 * LANES, n, factors[2], factors[3], x, stride);
}

static float total(const float *lanes) {
    float sum = 0;
    for (int l = 0; l < LANES; l++) sum += lanes[l];
    return sum;
}

static float dot(const float *a, const float *b, int64_t n) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) lanes[l] += a[i + l] * b[i + l];
    for (int l = 0; i < n; i++, l++) lanes[l] += a[i] * b[i];
    return total(lanes);
}

/* --- optimizer ---------------------------------------------------------------------------------------------------- */

/* Where a gradient goes in the flat vector: heads × rows × width numbers, one after the other at the source. */
typedef struct {
    int64_t offset, heads, head_stride, rows, row_stride, width;
} Part;

/* Copy gradients, where there are some, into the flat vector g; return the sum of their squares, not finite if one of them is not. */
EXPORT CLONES float gather(int64_t n_parts, const int64_t *sources, const Part *parts, float *g) {
    float squares = 0;
    for (int64_t k = 0; k < n_parts; k++) {
        const float *source = (const float *)(intptr_t)sources[k];
        const Part part = parts[k];
        if (!source) continue;
        squares += dot(source, source, part.heads * part.rows * part.width);
        for (int64_t head = 0; head < part.heads; head++)
            for (int64_t row = 0; row < part.rows; row++, source += part.width) {
                float *target = g + part.offset + head * part.head_stride + row * part.row_stride;
                if (part.width == 1)
                    *target = *source;
                else
                    memcpy(target, source, part.width * sizeof(float));
            }
    }
    return squares;
}

/* Scale every row of g, [n_rows, width], to at most this norm. */
EXPORT void clip_rows(int64_t n_rows, int64_t width, float *g, float limit) {
    for (int64_t row = 0; row < n_rows; row++, g += width) {
        float norm = sqrtf(dot(g, g, width));
        if (norm > limit)
            for (int64_t i = 0; i < width; i++) g[i] *= limit / (norm + 1e-7f);
    }
}

static inline float rmsprop_entry(
    float *theta, float *v, float g, float rate, float keep, float take, float correct, float eps, int inside, float scale
) {
    *v = *v * keep + take * g * g;
    float update = g / (inside ? sqrtf(*v * correct + eps) : sqrtf(*v * correct) + eps) * rate * scale;
    *theta -= update;
    return update;
}

static inline float rmsprop_part(
    int64_t n, float *restrict theta, float *restrict v, const float *restrict g, const float *restrict rates,
    float keep, float take, float correct, float eps, int inside, float scale
) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += rmsprop_entry(
                theta + i + l, v + i + l, g[i + l], rates[i + l], keep, take, correct, eps, inside, scale
            );
    for (int l = 0; i < n; i++, l++)
        lanes[l] += rmsprop_entry(theta + i, v + i, g[i], rates[i], keep, take, correct, eps, inside, scale);
    return total(lanes);
}

/* Adam's update of one number, as of rmsprop_entry. */
static inline float adam_entry(
    float *theta, float *m, float *v, float g, float rate, const float *keep, const float *take, const float *correct,
    float eps, float scale
) {
    *m = *m * keep[0] + take[0] * g;
    *v = *v * keep[1] + take[1] * g * g;
    float update = *m * correct[0] / (sqrtf(*v * correct[1]) + eps) * rate * scale;
    *theta -= update;
    return update;
}

static inline float adam_part(
    int64_t n, float *restrict theta, float *restrict m, float *restrict v, const float *restrict g,
    const float *restrict rates, const float *keep, const float *take, const float *correct, float eps, float scale
) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += adam_entry(
                theta + i + l, m + i + l, v + i + l, g[i + l], rates[i + l], keep, take, correct, eps, scale
            );
    for (int l = 0; i < n; i++, l++)
        lanes[l] += adam_entry(theta + i, m + i, v + i, g[i], rates[i], keep, take, correct, eps, scale);
    return total(lanes);
}

/* 1/(1 − decay^t). */
static double bias_correction(double decay, int64_t t) {
    double power = 1;
    for (; t > 0; t >>= 1, decay *= decay)
        if (t & 1) power *= decay;
    return 1 / (1 - power);
}

/* A way through all parameters, by parts that lie in one parameter and in one segment; a segment may have several
   parameters or be a part of one. */
typedef struct {
    int64_t n_parameters;
    const int64_t *parameters, *sizes, *segments; /* addresses, 0 for those to be left alone; lengths; lengths */
    float *steps;                                 /* of each segment, counted on the way */
    float *theta;                                 /* of this part, 0 if it is to be left alone */
    int64_t offset, n, rest, left;                /* of this part in flat vectors, its length; of parameter, of segment */
} Way;

/* Go on to the next part; 0 if there is none. *step is the count of its segment. */
static inline int next_part(Way *way, int64_t *step) {
    way->offset += way->n, way->rest -= way->n, way->left -= way->n;
    if (way->theta) way->theta += way->n;
    for (way->n = 0; !way->rest; way->n_parameters--) {
        if (!way->n_parameters) return 0;
        way->theta = (float *)(intptr_t)*way->parameters++;
        way->rest = *way->sizes++;
    }
    for (; !way->left; way->left = *way->segments++, way->steps++) *step = (int64_t)(*way->steps += 1);
    way->n = way->rest < way->left ? way->rest : way->left;
    return 1;
}

/* An update of the parameters, but for those at 0, and one more step of every segment; return the sum of what was taken
   off, not finite if one of it is not. */
EXPORT CLONES float rmsprop(
    int64_t n_parameters, const int64_t *parameters, const int64_t *sizes, const float *g, const float *rates,
    float *v, const int64_t *segments, float *steps, double decay, double eps, int inside, int correct_bias, double scale
) {
    float updates = 0, keep = (float)decay, take = (float)(1 - decay), correct = 1;
    Way way = {n_parameters, parameters, sizes, segments, steps, 0, 0, 0, 0, 0};
    for (int64_t step = 0; next_part(&way, &step);) {
        int64_t i = way.offset, n = way.n;
        if (!way.theta) continue;
        if (correct_bias) correct = (float)bias_correction(decay, step);
        if (inside)
            updates += rmsprop_part(n, way.theta, v + i, g + i, rates + i, keep, take, correct, (float)eps, 1, (float)scale);
        else
            updates += rmsprop_part(n, way.theta, v + i, g + i, rates + i, keep, take, correct, (float)eps, 0, (float)scale);
    }
    return updates;
}

/* The same of Adam, whose running means are m and v. */
EXPORT CLONES float adam(
    int64_t n_parameters, const int64_t *parameters, const int64_t *sizes, const float *g, const float *rates,
    float *m, float *v, const int64_t *segments, float *steps, double beta1, double beta2, double eps, double scale
) {
    float updates = 0, keep[2] = {(float)beta1, (float)beta2}, take[2] = {(float)(1 - beta1), (float)(1 - beta2)};
    Way way = {n_parameters, parameters, sizes, segments, steps, 0, 0, 0, 0, 0};
    for (int64_t step = 0; next_part(&way, &step);) {
        int64_t i = way.offset;
        if (!way.theta) continue;
        float correct[2] = {(float)bias_correction(beta1, step), (float)bias_correction(beta2, step)};
        updates += adam_part(
            way.n, way.theta, m + i, v + i, g + i, rates + i, keep, take, correct, (float)eps, (float)scale
        );
    }
    return updates;
}

/* --- heads -------------------------------------------------------------------------------------------------------- */

/* e^x to 2e-7, in any compiler's vector instructions (coefficients: Cephes, expf); NaN stays. */
static inline float exponential(float x) {
    union { float number; int32_t bits; } shifted, power;
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    shifted.number = x * 1.44269504f + 12582912.0f; /* 1.5 · 2²³: the nearest whole number is in the last bits */
    float n = shifted.number - 12582912.0f, r = x - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    power.bits = (int32_t)((uint32_t)(shifted.bits - 0x4B400000 + 127) << 23);
    return (p * r * r + r + 1.0f) * power.number;
}

/* tanh of n numbers, to 4e-7 of each, as a quotient of polynomials (coefficients: Eigen, ptanh_float); NaN stays. */
EXPORT CLONES void hyperbolic_tangent(int64_t n, const float *restrict x, float *restrict y) {
    for (int64_t i = 0; i < n; i++) {
        float v = x[i];
        v = v > 7.9053111f ? 7.9053111f : v;
        v = v < -7.9053111f ? -7.9053111f : v;
        float z = v * v, p = -2.76076847742355e-16f, q = 1.19825839466702e-06f;
        p = p * z + 2.00018790482477e-13f;
        p = p * z - 8.60467152213735e-11f;
        p = p * z + 5.12229709037114e-08f;
        p = p * z + 1.48572235717979e-05f;
        p = p * z + 6.37261928875436e-04f;
        p = p * z + 4.89352455891786e-03f;
        q = q * z + 1.18534705686654e-04f;
        q = q * z + 2.26843463243900e-03f;
        q = q * z + 4.89352518554385e-03f;
        y[i] = v * p / q;
    }
}

/* log x to 1e-7, of x of at least 1e-37, likewise (coefficients: Cephes, logf); NaN stays. */
static inline float logarithm(float x) {
    union { float number; int32_t bits; } whole = {x}, part;
    /* x = 2^n · (1 + r) with 1 + r in [√½, √2), whose bits begin at those of √½. */
    int32_t n = (whole.bits - 0x3F3504F3) >> 23;
    part.bits = whole.bits - (int32_t)((uint32_t)n << 23);
    float r = part.number - 1.0f, z = r * r, e = (float)n, p = 7.0376836292e-2f;
    p = p * r - 1.1514610310e-1f;
    p = p * r + 1.1676998740e-1f;
    p = p * r - 1.2420140846e-1f;
    p = p * r + 1.4249322787e-1f;
    p = p * r - 1.6668057665e-1f;
    p = p * r + 2.0000714765e-1f;
    p = p * r - 2.4999993993e-1f;
    p = p * r + 3.3333331174e-1f;
    p = p * r * z + e * -2.12194440e-4f - 0.5f * z;
    return r + p + e * 0.693359375f + (x - x);
}

/* How the parameters of J heads lie in theta: P numbers each, of them first O rows of I weights and, maybe, a bias. */
typedef struct {
    int64_t J, P, O, I, bias;
} Shape;

/* The average parameters of the heads' rows. */
static void collapse(Shape s, const float *theta, const float *weights, float *average) {
    int64_t n = s.O * (s.I + s.bias);
    memset(average, 0, n * sizeof(float));
    for (int64_t j = 0; j < s.J; j++)
        for (int64_t i = 0; i < n; i++) average[i] += weights[j] * theta[j * s.P + i];
}

static inline int64_t padded(int64_t n) { return (n + LANES - 1) / LANES * LANES; }

/* x, [B, I], to [B / LANES, I, LANES], so that sums over I run side by side for LANES data; what is missing is 0. */
static void interleave(int64_t B, int64_t I, const float *x, float *lanes) {
    for (int64_t first = 0; first < B; first += LANES, x += LANES * I) {
        int64_t n = B - first < LANES ? B - first : LANES;
        if (n < LANES) memset(lanes, 0, LANES * I * sizeof(float));
        for (int64_t i = 0; i < I; i++, lanes += LANES)
            if (n == LANES)
                for (int64_t l = 0; l < LANES; l++) lanes[l] = x[l * I + i];
            else
                for (int64_t l = 0; l < n; l++) lanes[l] = x[l * I + i];
    }
}

/* Where the next four of rows begin, of which n are left; the last one again for those that are missing. */
static int64_t next_four(const float **four, int64_t n, const float *rows, int64_t stride) {
    for (int64_t r = 0; r < 4; r++) four[r] = rows + (r < n ? r : n - 1) * stride;
    return n < 4 ? n : 4;
}

/* Outputs, [K, B], of K rows of I weights, and of a bias behind them, for interleaved data. */
static void outputs(
    int64_t K, int64_t stride, int64_t I, int64_t bias, int64_t B, const float *rows, const float *x, float *y
) {
    for (int64_t k = 0; k < K; k += 4) {
        const float *factors[4];
        int64_t n = next_four(factors, K - k, rows + k * stride, stride);
        for (int64_t first = 0; first < B; first += LANES) {
            float sums[4 * LANES];
            int64_t size = (B - first < LANES ? B - first : LANES) * sizeof(float);
            products(sums, I, factors, x + first * I, LANES);
            for (int64_t r = 0; r < n; r++) {
                for (int l = 0; bias && l < LANES; l++) sums[r * LANES + l] += factors[r][I];
                memcpy(y + (k + r) * B + first, sums + r * LANES, size);
            }
        }
    }
}

/* Of all heads, [J · O, B]. */
static void outputs_of_heads(Shape s, int64_t B, const float *theta, const float *x, float *y) {
    int64_t columns = s.I + s.bias;
    if (s.P == s.O * columns)
        outputs(s.J * s.O, columns, s.I, s.bias, B, theta, x, y);
    else
        for (int64_t j = 0; j < s.J; j++) outputs(s.O, columns, s.I, s.bias, B, theta + j * s.P, x, y + j * s.O * B);
}

/* Outputs of the average, [O, B], and, if heads, of every head behind it: [1 + J, O, B]. */
EXPORT CLONES void linear_branches(
    const Shape *shape, int64_t B, const float *theta, const float *weights, const float *x, int heads, float *branches
) {
    const Shape s = *shape;
    int64_t n = s.O * (s.I + s.bias);
    float *average = malloc((n + padded(B) * s.I) * sizeof(float)), *data = average + n;
    if (!average) return;
    interleave(B, s.I, x, data);
    collapse(s, theta, weights, average);
    outputs(s.O, s.I + s.bias, s.I, s.bias, B, average, data, branches);
    if (heads) outputs_of_heads(s, B, theta, data, branches + s.O * B);
    free(average);
}

/* The product of f, [m, n], and n rows of I numbers, which begin stride apart: [m, I]. */
static void multiply(
    int64_t m, int64_t n, int64_t I, int64_t stride, const float *f, const float *rows, float *restrict product
) {
    for (int64_t k = 0; k < m; k += 4) {
        const float *factors[4];
        int64_t some = next_four(factors, m - k, f + k * n, n), i = 0;
        for (; i + LANES <= I; i += LANES) {
            float sums[4 * LANES];
            products(sums, n, factors, rows + i, stride);
            for (int64_t r = 0; r < some; r++) memcpy(product + (k + r) * I + i, sums + r * LANES, LANES * sizeof(float));
        }
        for (int64_t r = 0; r < some; r++)
            for (int64_t rest = i; rest < I; rest++) {
                product[(k + r) * I + rest] = 0;
                for (int64_t j = 0; j < n; j++) product[(k + r) * I + rest] += factors[r][j] * rows[j * stride + rest];
            }
    }
}

/* From the gradient g of K rows of outputs, [K, B], to those of the rows, [K, I], and biases, [K]. */
static void row_gradients(int64_t K, int64_t I, int64_t B, const float *x, const float *g, float *rows, float *biases) {
    multiply(K, B, I, I, g, x, rows);
    for (int64_t k = 0; k < K; k++) {
        biases[k] = 0;
        for (int64_t b = 0; b < B; b++) biases[k] += g[k * B + b];
    }
}

/* Add to the gradient of x, [B, I], what comes through K rows of weights. */
static inline void input_gradient(
    int64_t K, int64_t I, int64_t stride, int64_t B, const float *rows, const float *g, float *restrict of_x
) {
    for (int64_t k = 0; k < K; k++, rows += stride)
        for (int64_t b = 0; b < B; b++)
            for (int64_t i = 0; i < I; i++) of_x[b * I + i] += g[k * B + b] * rows[i];
}

/* From the gradient g of branches, [1 + J, O, B], to those of x, [B, I], of the heads' weights, [J, O, I], and biases,
   [J, O], and, unless branches is 0, of the averaging weights, [J]. */
EXPORT CLONES void linear_gradient(
    const Shape *shape, int64_t B, const float *theta, const float *weights, const float *x, const float *branches,
    const float *g, float *of_x, float *of_rows, float *of_biases, float *of_weights
) {
    const Shape s = *shape;
    float *average = malloc(s.O * (s.I + s.bias) * sizeof(float));
    if (!average) return;
    collapse(s, theta, weights, average);
    memset(of_x, 0, B * s.I * sizeof(float));
    input_gradient(s.O, s.I, s.I + s.bias, B, average, g, of_x);
    row_gradients(s.J * s.O, s.I, B, x, g + s.O * B, of_rows, of_biases);
    for (int64_t j = 0; j < s.J; j++) of_weights[j] = branches ? dot(g, branches + (1 + j) * s.O * B, s.O * B) : 0;
    free(average);
}

/* log Σ exp of B times n numbers that are stride apart, shift added to each, as the sum of the largest and the rest. */
static void logsumexp(
    int64_t n, int64_t stride, int64_t B, const float *x, const float *shift, float *restrict most, float *restrict rest
) {
    for (int64_t k = 0; k < n; k++) {
        const float *row = x + k * stride;
        float add = shift ? shift[k] : 0;
        for (int64_t b = 0; b < B; b++) {
            float value = row[b] + add;
            most[b] = k == 0 || value > most[b] || value != value ? value : most[b];
        }
    }
    for (int64_t b = 0; b < B; b++) rest[b] = 0;
    for (int64_t k = 0; k < n; k++) {
        const float *row = x + k * stride;
        float add = shift ? shift[k] : 0;
        for (int64_t b = 0; b < B; b++) rest[b] += exponential(row[b] + add - most[b]);
    }
    for (int64_t b = 0; b < B; b++) rest[b] = logarithm(rest[b]);
}

/* Log-probabilities of the mixture of heads of O classes and, if heads, of every head behind it: [1 + J, O, B]. */
EXPORT CLONES void categorical_branches(
    const Shape *shape, int64_t B, const float *theta, const float *weights, const float *x, int heads, float *branches
) {
    const Shape s = *shape;
    int64_t size = s.O * B;
    float *data = malloc((padded(B) * s.I + s.J * size + 2 * B + s.J) * sizeof(float));
    if (!data) return;
    float *own = data + padded(B) * s.I, *most = own + s.J * size, *rest = most + B, *logs = rest + B;
    interleave(B, s.I, x, data);
    outputs_of_heads(s, B, theta, data, own);
    for (int64_t j = 0; j < s.J; j++) {
        float *row = own + j * size;
        logsumexp(s.O, B, B, row, NULL, most, rest);
        for (int64_t o = 0; o < s.O; o++)
            for (int64_t b = 0; b < B; b++) row[o * B + b] = row[o * B + b] - most[b] - rest[b];
        logs[j] = logf(weights[j]);
    }
    for (int64_t o = 0; o < s.O; o++) {
        logsumexp(s.J, size, B, own + o * B, logs, most, rest);
        for (int64_t b = 0; b < B; b++) branches[o * B + b] = most[b] + rest[b];
    }
    if (heads) memcpy(branches + size, own, s.J * size * sizeof(float));
    free(data);
}

/* As linear_gradient, for these. */
EXPORT CLONES void categorical_gradient(
    const Shape *shape, int64_t B, const float *theta, const float *weights, const float *x, const float *branches,
    const float *g, float *restrict of_x, float *of_rows, float *of_biases, float *of_weights
) {
    const Shape s = *shape;
    int64_t size = s.O * B, columns = s.I + s.bias;
    int at_once = s.P == s.O * columns;
    float *own = malloc((2 * s.J * size + 2 * B) * sizeof(float));
    if (!own) return;
    float *through = own + s.J * size, *restrict sums = through + s.J * size, *restrict sums_through = sums + B;
    memset(of_x, 0, B * s.I * sizeof(float));
    for (int64_t j = 0; j < s.J; j++) {
        const float *row = branches + (1 + j) * size, *of_head = g + (1 + j) * size;
        float *restrict mine = own + j * size, *restrict passing = through + j * size, log_weight = logf(weights[j]);
        memset(sums, 0, 2 * B * sizeof(float));
        for (int64_t o = 0; o < s.O; o++)
            for (int64_t b = 0; b < B; b++) {
                int64_t i = o * B + b;
                passing[i] = g[i] * exponential(row[i] + log_weight - branches[i]);
                sums[b] += of_head[i];
                sums_through[b] += passing[i];
            }
        of_weights[j] = 0;
        for (int64_t b = 0; b < B; b++) of_weights[j] += sums_through[b];
        of_weights[j] /= weights[j];
        for (int64_t o = 0; o < s.O; o++)
            for (int64_t b = 0; b < B; b++) {
                int64_t i = o * B + b;
                float p = exponential(row[i]);
                mine[i] = of_head[i] - p * sums[b];
                passing[i] -= p * sums_through[b];
            }
        if (!at_once) input_gradient(s.O, s.I, columns, B, theta + j * s.P, passing, of_x);
    }
    row_gradients(s.J * s.O, s.I, B, x, own, of_rows, of_biases);
    if (at_once) { /* g turned around, into [B, J · O], for sums in registers */
        for (int64_t k = 0; k < s.J * s.O; k++)
            for (int64_t b = 0; b < B; b++) own[b * s.J * s.O + k] = through[k * B + b];
        multiply(B, s.J * s.O, s.I, columns, own, theta, of_x);
    }
    free(own);
}

/* --- averaging rules ---------------------------------------------------------------------------------------------- */

static double at_most(double x, double limit) { return x < limit ? x : limit; }
static double at_least(double x, double limit) { return x > limit ? x : limit; }
static double within(double x, double limit) { return at_least(at_most(x, limit), -limit); }
static double toward(double mean, double value, double decay) {
    return at_most(mean + (1 - decay) * (value - mean), FLT_MAX);
}

/* log p_j, up to a common term, from losses, [1 + J], of the average and the heads; n = 0 says they are -log p_j. */
static void likelihoods(
    int64_t J, const float *losses, double n, double decay, float *scale, float *correction, double *p
) {
    double factor = -1, most = -INFINITY;
    if (n) {
        double average = fabs((double)losses[0]);
        *scale = (float)toward(*scale, isfinite(average) ? average : 0, decay);
        *correction = (float)(*correction * decay);
        factor = *scale ? n * (*correction - 1) / *scale : NAN;
    }
    for (int64_t j = 0; j < J; j++) {
        p[j] = losses[1 + j] * factor;
        p[j] = isfinite((float)p[j]) ? p[j] : -FLT_MAX; /* as in 32 bits */
        most = at_least(most, p[j]);
    }
    for (int64_t j = 0; j < J; j++) p[j] = exp(p[j] - most);
}

/* Switch: mixture is [2, J], prior [2]. Where losses are no log-likelihoods weights are those before the pool. */
EXPORT void switching(
    int64_t J, float *weights, const float *losses, double n, double decay, float *scale, float *correction, int hazard,
    float *t, const float *prior, float *mixture
) {
    float *a = mixture, *b = mixture + J;
    double *p = malloc(J * sizeof(double));
    if (!p) return;
    likelihoods(J, losses, n, decay, scale, correction, p);
    double pool = 0, sum = 0, stay = 1, seen = 0;
    for (int64_t j = 0; j < J; j++) seen += (a[j] + b[j]) * p[j];
    if (hazard) {
        double steps = *t + 1.0;
        for (int64_t j = 0; j < J; j++) pool += a[j] * p[j];
        pool /= steps + 1, stay = steps / (steps + 1);
        *t = (float)steps;
    }
    for (int64_t j = 0; j < J; j++)
        sum += a[j] * p[j] * stay + prior[0] * pool + (b[j] * p[j] + prior[1] * pool);
    for (int64_t j = 0; j < J; j++) {
        double x = at_least((a[j] * p[j] * stay + prior[0] * pool) / sum, FLT_MIN);
        double y = at_least((b[j] * p[j] + prior[1] * pool) / sum, FLT_MIN);
        weights[j] = (float)(n ? (a[j] + b[j]) * p[j] / seen : x + y);
        a[j] = (float)x, b[j] = (float)y;
    }
    free(p);
}

/* ExponentiatedGradient: moments is [3]. */
EXPORT void exponentiated_gradient(
    int64_t J, float *weights, const float *gains, double beta, double alpha, double clip, double decay, double rounding,
    double largest, float *moments
) {
    double *advantage = malloc(J * sizeof(double));
    if (!advantage) return;
    double mean = 0, square = 0, variance = 0, sum = 0, correction = moments[2] * decay;
    for (int64_t j = 0; j < J; j++) {
        double gain = advantage[j] = isfinite(gains[j]) ? within(gains[j], largest) : 0;
        mean += weights[j] * gain;
        square += weights[j] * gain * gain;
    }
    square = toward(moments[0], square, decay);
    rounding *= sqrt(square / (1 - correction));
    for (int64_t j = 0; j < J; j++) {
        advantage[j] -= mean;
        if (!(fabs(advantage[j]) > rounding)) advantage[j] = 0;
        variance += weights[j] * advantage[j] * advantage[j];
    }
    variance = toward(moments[1], variance, decay);
    moments[0] = (float)square, moments[1] = (float)variance, moments[2] = (float)correction;
    /* Of gains whose squares are beneath what 32 bits hold nothing is known. */
    double scale = (float)variance >= FLT_MIN ? beta / sqrt(variance / (1 - correction)) : 0;
    for (int64_t j = 0; j < J; j++) {
        advantage[j] = weights[j] * exp(within(advantage[j] * scale, clip));
        sum += advantage[j];
    }
    for (int64_t j = 0; j < J; j++) weights[j] = (float)(advantage[j] * ((1 - alpha) / sum) + alpha / J);
    free(advantage);
}

/* Whiteness: gradient and previous are [J, P]; faster, [J - 1, J], is 0 at k where heads k and k + 1 have one rate. */
EXPORT void whiteness(
    int64_t J, int64_t P, float *weights, const float *gradient, double kappa, double most, double decay,
    double largest, const float *faster, float *previous, float *product, float *norm
) {
    double *flow = malloc(J * sizeof(double) + P * sizeof(float));
    if (!flow) return;
    float *bounded = (float *)(flow + J), limit = (float)largest;
    double center = 0, sum = 0;
    for (int64_t j = 0; j < J; j++) {
        const float *g = gradient + j * P;
        float *before = previous + j * P, move = (float)(1 - decay), square = dot(g, g, P);
        if (!(square <= limit * limit)) { /* else no number is larger */
            for (int64_t i = 0; i < P; i++) bounded[i] = (float)within(g[i], limit);
            g = bounded, square = dot(g, g, P);
        }
        product[j] += move * (dot(g, before, P) - product[j]);
        norm[j] += move * (square - norm[j]);
        memcpy(before, g, P * sizeof(float));
        double rho = norm[j] ? (double)product[j] / norm[j] : 0;
        rho = isfinite(rho) ? within(rho, 1) : 0;
        if (j == 0) center = at_most(rho, 0);
        flow[j] = within((rho - center) * kappa, most) * weights[j];
    }
    double held = weights[0];
    for (int64_t j = 0; j < J; j++) {
        double next = j + 1 < J ? weights[j + 1] : 0, moved = 0;
        if (j + 1 < J && faster[j * J + j]) moved = at_least(flow[j], 0) + at_most(flow[j + 1], 0);
        flow[j] = at_least(held - moved, 0);
        held = next + moved;
        sum += flow[j];
    }
    for (int64_t j = 0; j < J; j++) weights[j] = (float)(flow[j] / sum);
    free(flow);
}

/* --- losses ------------------------------------------------------------------------------------------------------- */

/* The mean regression loss of every branch, its gradient, and the mean square of what was missed.

   Of outputs [n_branches, n, n_columns] with these strides, of which `index` chooses one column for each of n rows, and n
   labels. Up to the distance `bound` from its label an output loses d²/(2·bound), beyond it |d| − bound/2; where the
   bound is infinite, d². The gradient, which lies as the outputs do, is 0 before. Return whether there is a column for
   every index; else nothing was done. */
EXPORT int chosen_losses(
    int64_t n_branches, int64_t n, int64_t n_columns, const int64_t *strides, const float *outputs,
    const int64_t *index, const float *labels, float bound, float *losses, float *squares, float *gradient
) {
    const float each = 1.0f / (float)n, near = isinf(bound) ? 1.0f : 0.5f / bound;
    for (int64_t i = 0; i < n; i++)
        if (index[i] < 0 || index[i] >= n_columns) return 0;
    for (int64_t branch = 0; branch < n_branches; branch++) {
        float lost[LANES] = {0}, missed[LANES] = {0};
        for (int64_t i = 0; i < n; i++) {
            const int64_t place = branch * strides[0] + i * strides[1] + index[i] * strides[2];
            const float d = outputs[place] - labels[i], beyond = fabsf(d) - bound;
            const int far = beyond >= 0; /* and not what is no number, which is to show in loss and gradient */
            lost[i % LANES] += far ? beyond + 0.5f * bound : near * d * d;
            missed[i % LANES] += d * d;
            gradient[place] = each * (far ? (d > 0 ? 1.0f : -1.0f) : 2 * near * d);
        }
        losses[branch] = total(lost) * each;
        squares[branch] = total(missed) * each;
    }
    return 1;
}

/* Quantile Huber losses of n_branches, n rows of Q quantiles each, by n rows of T samples of what they are quantiles of:
   Σ_i Σ_j |τ_i − [d < 0]| · h(d), d = sample_j − quantile_i, τ_i = (i + ½)/Q, h(d) = d²/2 up to 1 and |d| − ½ beyond, the
   mean of it over rows and samples; with the gradient. */
EXPORT CLONES void quantile_losses(
    int64_t n_branches, int64_t n, int64_t Q, int64_t T, const float *quantiles, const float *samples, float *losses,
    float *gradient
) {
    const float each = 1.0f / ((float)n * (float)T);
    for (int64_t branch = 0; branch < n_branches; branch++) {
        double sum = 0;
        for (int64_t row = 0; row < n; row++)
            for (int64_t first = 0; first < Q; first += LANES) {
                const int64_t some = Q - first < LANES ? Q - first : LANES;
                float at[LANES] = {0}, tau[LANES], lost[LANES] = {0}, slope[LANES] = {0};
                memcpy(at, quantiles, (size_t)some * sizeof(float));
                for (int l = 0; l < LANES; l++) tau[l] = ((float)(first + l) + 0.5f) / (float)Q;
                for (int64_t j = 0; j < T; j++) {
                    const float sample = samples[row * T + j];
                    for (int l = 0; l < LANES; l++) {
                        const float d = sample - at[l], near = d > 1 ? 1 : d < -1 ? -1 : d;
                        const float pull = (d < 0 ? 1 - tau[l] : tau[l]) * near;
                        lost[l] += pull * (d - 0.5f * near), slope[l] += pull;
                    }
                }
                for (int64_t l = 0; l < some; l++) sum += lost[l], *gradient++ = -slope[l] * each;
                quantiles += some;
            }
        losses[branch] = (float)(sum / ((double)n * (double)T));
    }
}

/* --- densities ---------------------------------------------------------------------------------------------------- */

/* Log-densities of actions, [B, K], under K independent Gaussians of every branch: means, [n, B, K] with these strides,
   and log σ, [n, K], to [n, B]. */
EXPORT void gaussian_log_prob(
    int64_t n, int64_t B, int64_t K, const int64_t *strides, const float *mean, const float *log_std,
    const float *actions, float *log_prob
) {
    for (int64_t branch = 0; branch < n; branch++, log_std += K, log_prob += B) {
        float constant = 0.918938533f * (float)K; /* ½ log 2π each */
        for (int64_t k = 0; k < K; k++) constant += log_std[k];
        for (int64_t b = 0; b < B; b++) log_prob[b] = -constant;
        for (int64_t k = 0; k < K; k++) {
            const float *centre = mean + branch * strides[0] + k * strides[2], precision = expf(-log_std[k]);
            for (int64_t b = 0; b < B; b++) {
                float z = (actions[b * K + k] - centre[b * strides[1]]) * precision;
                log_prob[b] -= 0.5f * z * z;
            }
        }
    }
}

/* From their gradient, [n, B], those of the means, which lie as the means do, and of log σ. A branch whose gradient is
   the first one's counts by the ratio of its density to the first one's, most at most; weighted, [n, B], is for that. */
EXPORT void gaussian_gradient(
    int64_t n, int64_t B, int64_t K, const int64_t *strides, const float *mean, const float *log_std,
    const float *actions, const float *log_prob, float log_most, const float *g, float *weighted, float *of_mean,
    float *of_log_std
) {
    for (int64_t branch = 0; branch < n; branch++)
        for (int64_t b = 0; b < B; b++) {
            const int64_t i = branch * B + b;
            const int alike = branch > 0 && g[i] == g[b];
            weighted[i] = alike ? g[i] * expf(fminf(log_prob[i] - log_prob[b], log_most)) : g[i];
        }
    for (int64_t branch = 0; branch < n; branch++, weighted += B)
        for (int64_t k = 0; k < K; k++) {
            const int64_t start = branch * strides[0] + k * strides[2];
            const float precision = expf(-log_std[branch * K + k]);
            float sums[LANES] = {0};
            for (int64_t b = 0; b < B; b++) {
                const int64_t place = start + b * strides[1];
                float z = (actions[b * K + k] - mean[place]) * precision;
                of_mean[place] = weighted[b] * z * precision;
                sums[b % LANES] += weighted[b] * (z * z - 1);
            }
            of_log_std[branch * K + k] = total(sums);
        }
}

/* tanh u to 1e-7 and 1 − tanh² u to 4e-7 of it, also where tanh rounds to 1; NaN stays. */
static inline float squash(float u, float *slope) {
    const float e = exponential(-2 * fabsf(u)), a = (1 - e) / (1 + e);
    *slope = 4 * e / ((1 + e) * (1 + e));
    return u < 0 ? -a : a;
}

static inline float clamped(float x, float low, float high) {
    x = x > high ? high : x;
    return x < low ? low : x;
}

static inline void squash_row(
    int64_t B, int64_t step, int64_t noise_step, float low, float high, float least, const float *restrict mean,
    const float *restrict log_std, const float *restrict noise, float *restrict actions, float *restrict log_prob
) {
    for (int64_t b = 0; b < B; b++) {
        const float s = clamped(log_std[b * step], low, high), z = noise[b * noise_step];
        float slope;
        actions[b] = squash(mean[b * step] + exponential(s) * z, &slope);
        log_prob[b] -= 0.918938533f + 0.5f * z * z + s + logarithm(slope + least);
    }
}

/* Of every branch actions tanh(m + σ ε), to [n, K, B], and their log-densities, [n, B]; from means and, behind them, log σ,
   [n, B, 2 K], within these bounds, and ε, [B, K]. Strides are those of the former and then of the latter. */
EXPORT CLONES void squashed_gaussian(
    int64_t n, int64_t B, int64_t K, const int64_t *strides, float low, float high, float least, const float *outputs,
    const float *noise, float *actions, float *log_prob
) {
    memset(log_prob, 0, n * B * sizeof(float));
    for (int64_t branch = 0; branch < n; branch++, log_prob += B)
        for (int64_t k = 0; k < K; k++, actions += B) {
            const float *m = outputs + branch * strides[0] + k * strides[2], *s = m + K * strides[2];
            const float *z = noise + k * strides[4];
            if (strides[1] == 1 && strides[3] == 1)
                squash_row(B, 1, 1, low, high, least, m, s, z, actions, log_prob);
            else
                squash_row(B, strides[1], strides[3], low, high, least, m, s, z, actions, log_prob);
        }
}

static inline void unsquash_row(
    int64_t B, int64_t step, int64_t noise_step, int64_t K, float low, float high, float least,
    const float *restrict mean, const float *restrict log_std, const float *restrict noise, const float *restrict g,
    const float *restrict of_log_prob, float *restrict of_mean, float *restrict of_log_std
) {
    for (int64_t b = 0; b < B; b++) {
        const float s = log_std[b * step], deviation = exponential(clamped(s, low, high)) * noise[b * noise_step];
        float slope;
        const float a = squash(mean[b * step] + deviation, &slope);
        const float of_m = (2 * of_log_prob[b] * a / (slope + least) + g[b * K]) * slope;
        const float of_s = of_m * deviation - of_log_prob[b];
        of_mean[b * step] = of_m;
        of_log_std[b * step] = s < low || s > high ? 0 : of_s;
    }
}

/* From the gradients of the actions, [n, B, K], and of their log-densities that of the outputs, which lies as these do. */
EXPORT CLONES void squashed_gradient(
    int64_t n, int64_t B, int64_t K, const int64_t *strides, float low, float high, float least, const float *outputs,
    const float *noise, const float *of_actions, const float *of_log_prob, float *of_outputs
) {
    for (int64_t branch = 0; branch < n; branch++, of_actions += B * K, of_log_prob += B)
        for (int64_t k = 0; k < K; k++) {
            const int64_t start = branch * strides[0] + k * strides[2], further = K * strides[2];
            const float *m = outputs + start, *z = noise + k * strides[4], *g = of_actions + k;
            float *to = of_outputs + start;
            if (strides[1] == 1 && strides[3] == 1 && K == 1)
                unsquash_row(B, 1, 1, 1, low, high, least, m, m + further, z, g, of_log_prob, to, to + further);
            else
                unsquash_row(
                    B, strides[1], strides[3], K, low, high, least, m, m + further, z, g, of_log_prob, to, to + further
                );
        }
}
