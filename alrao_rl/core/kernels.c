/* The inner loops of an update on the CPU: the optimizer's, for float32, and the averaging rules'.

   What they compute is defined by the tensor operations of optim.py and averaging.py, which the tests hold them to, and
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

enum { LANES = 16 };

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
EXPORT float gather(int64_t n_parts, const int64_t *sources, const Part *parts, float *g) {
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
    float *theta, float *v, float g, float rate, float keep, float take, float eps, int inside, float scale
) {
    *v = *v * keep + take * g * g;
    float update = g / (inside ? sqrtf(*v + eps) : sqrtf(*v) + eps) * rate * scale;
    *theta -= update;
    return update;
}

static inline float rmsprop_part(
    int64_t n, float *restrict theta, float *restrict v, const float *restrict g, const float *restrict rates,
    float keep, float take, float eps, int inside, float scale
) {
    float lanes[LANES] = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++)
            lanes[l] += rmsprop_entry(
                theta + i + l, v + i + l, g[i + l], rates[i + l], keep, take, eps, inside, scale
            );
    for (int l = 0; i < n; i++, l++)
        lanes[l] += rmsprop_entry(theta + i, v + i, g[i], rates[i], keep, take, eps, inside, scale);
    return total(lanes);
}

/* An update of the parameters, but for those at 0; return the sum of what was taken off, not finite if one of it is not. */
EXPORT float rmsprop(
    int64_t n_parameters, const int64_t *parameters, const int64_t *sizes, const float *g, const float *rates,
    float *v, double decay, double eps, int inside, double scale
) {
    float updates = 0;
    for (int64_t k = 0; k < n_parameters; k++) {
        float *theta = (float *)(intptr_t)parameters[k];
        float keep = (float)decay, take = (float)(1 - decay);
        if (!theta)
            ;
        else if (inside)
            updates += rmsprop_part(sizes[k], theta, v, g, rates, keep, take, (float)eps, 1, (float)scale);
        else
            updates += rmsprop_part(sizes[k], theta, v, g, rates, keep, take, (float)eps, 0, (float)scale);
        v += sizes[k], g += sizes[k], rates += sizes[k];
    }
    return updates;
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
        p[j] = isfinite(p[j]) ? at_least(p[j], -FLT_MAX) : -FLT_MAX;
        most = at_least(most, p[j]);
    }
    for (int64_t j = 0; j < J; j++) p[j] = exp(p[j] - most);
}

/* Switch: mixture is [2, J], prior [2]. */
EXPORT void switching(
    int64_t J, float *weights, const float *losses, double n, double decay, float *scale, float *correction, int hazard,
    float *t, const float *prior, float *mixture
) {
    float *a = mixture, *b = mixture + J;
    double *p = malloc(J * sizeof(double));
    if (!p) return;
    likelihoods(J, losses, n, decay, scale, correction, p);
    double pool = 0, sum = 0, stay = 1;
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
        a[j] = (float)x, b[j] = (float)y, weights[j] = (float)(x + y);
    }
    free(p);
}

/* ExponentiatedGradient: moments is [3]. */
EXPORT void exponentiated_gradient(
    int64_t J, float *weights, const float *gains, double beta, double alpha, double clip, double decay, double rounding,
    float *moments
) {
    double *advantage = malloc(J * sizeof(double));
    if (!advantage) return;
    double mean = 0, square = 0, variance = 0, sum = 0, correction = moments[2] * decay;
    for (int64_t j = 0; j < J; j++) {
        double gain = advantage[j] = isfinite(gains[j]) ? gains[j] : 0;
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
    double spread = sqrt(variance / (1 - correction)), scale = spread ? beta / spread : 0;
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
    const float *faster, float *previous, float *product, float *norm
) {
    double *flow = malloc(J * sizeof(double));
    if (!flow) return;
    double center = 0, sum = 0;
    for (int64_t j = 0; j < J; j++) {
        const float *g = gradient + j * P;
        float *before = previous + j * P, move = (float)(1 - decay);
        product[j] += move * (dot(g, before, P) - product[j]);
        norm[j] += move * (dot(g, g, P) - norm[j]);
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
