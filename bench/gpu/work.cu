/* What the GPU check computes: y = 2 x, in a time of choice, with rows that do as the check wishes.
 *
 * Rows that begin with ILLEGAL write where nothing is, which loses the device for the process; rows that begin with ENDLESS
 * never end. The time is that of the device's wall clock, whatever its processors are clocked at, and one block alone
 * takes it, so that it does not grow with the number of blocks.
 */
#ifdef __CUDACC__
static __device__ unsigned long long now(void) /* nanoseconds */
{
    unsigned long long time;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(time));
    return time;
}
#endif

#ifdef __cplusplus
extern "C"
#endif
__global__ void work(
    const float *x,
    float *y,
    volatile unsigned int *never, /* stays 0 */
    unsigned int count,           /* elements */
    unsigned int width,           /* of a row */
    unsigned int nanoseconds)     /* that it takes at least */
{
    const unsigned long long begin = now();
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
    if (blockIdx.x == 0)
        while (now() - begin < nanoseconds)
            ;
}
