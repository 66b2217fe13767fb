#include <math.h>
#include <stdint.h>
#include <string.h>

/* e^y to 2e-7 relative for y <= 88, 0 below -87; vectorises without a library */
static inline float quick_exp(float y) {
    float x = y < -87 ? -87 : y;
    float n = nearbyintf(x * 1.44269504f);
    float f = (x - n * 0.693145752f) - n * 1.42860677e-6f; /* |f| <= ln 2 / 2 */
    float p = 1.0f / 720;
    p = p * f + 1.0f / 120;
    p = p * f + 1.0f / 24;
    p = p * f + 1.0f / 6;
    p = p * f + 0.5f;
    p = p * f + 1;
    p = p * f + 1;
    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return y < -87 ? 0 : p * power;
}
