/* What the GPU check computes: y = 2 x, in a time of choice, with rows that do as the check wishes.
 *
 * Rows that begin with ILLEGAL write where nothing is, which loses the device for the process; rows that begin with ENDLESS
 * never end.
 */
extern "C" __global__ void work(
    const float *x,
    float *y,
    volatile unsigned int *never, /* stays 0 */
    unsigned int count,           /* elements */
    unsigned int width,           /* of a row */
    unsigned int cycles)          /* clocks that each thread takes at least */
{
    const long long begin = clock64();
    const unsigned int stride = gridDim.x * blockDim.x;
    for (unsigned int at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
        if (at % width == 0) {
            if (x[at] == ILLEGAL)
                *(volatile float *)8 = 1.0f;
            if (x[at] == ENDLESS)
                while (*never == 0)
                    ;
        }
        y[at] = 2.0f * x[at];
    }
    while (clock64() - begin < cycles)
        ;
}
