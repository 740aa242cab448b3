/* A driver without a GPU: as much of libcuda.so.1 as launching `prepare` takes, which it runs on the processor.
 *
 * So what NVRTC has compiled is handed over, and the arguments are packed, by the real bindings. Compiled with the macros
 * of `prepare.cu`, for its one launch.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INVALID 1
#define NO_MEMORY 2
#define NO_BINARY 209
#define NOT_FOUND 500

typedef struct { unsigned int x; } dim;
static dim gridDim, blockDim, blockIdx, threadIdx;
#define __global__ static
#include "prepare.cu"

uintptr_t launched_on; /* the stream */
unsigned int launched_grid[7];

int cuInit(unsigned int flags) { return flags ? INVALID : 0; }

int cuDriverGetVersion(int *version) { *version = 13000; return 0; }

int cuGetExportTable(const void **table, const void *id) /* NVRTC asks for it, and goes on without */
{
    (void)id;
    *table = NULL;
    return NOT_FOUND;
}

int cuModuleLoadData(void **module, const void *image)
{
    *module = (void *)1;
    return memcmp(image, "\x7f" "ELF", 4) ? NO_BINARY : 0;
}

int cuModuleGetFunction(void **function, void *module, const char *name)
{
    *function = (void *)2;
    return module != (void *)1 || strcmp(name, "prepare") ? NOT_FOUND : 0;
}

int cuLaunchKernel(void *function, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by,
                   unsigned int bz, unsigned int shared, void *stream, void **arguments, void **extra)
{
    const unsigned int grid[7] = {gx, gy, gz, bx, by, bz, shared};
    if (gx == 0)
        return NO_MEMORY; /* of a grid without blocks, so that tests can have it */
    if (function != (void *)2 || extra != NULL)
        return INVALID;
    memcpy(launched_grid, grid, sizeof grid);
    launched_on = (uintptr_t)stream;
    gridDim.x = gx;
    blockDim.x = bx;
    for (blockIdx.x = 0; blockIdx.x < gx; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < bx; threadIdx.x++)
            prepare(*(const SOURCE **)arguments[0], *(TARGET **)arguments[1], *(const TARGET **)arguments[2],
                    *(unsigned int *)arguments[3], *(unsigned int *)arguments[4], *(unsigned int *)arguments[5],
                    *(unsigned int *)arguments[6], *(unsigned int *)arguments[7]);
    return 0;
}

int cuGetProcAddress_v2(const char *symbol, void **found, int version, uint64_t flags, int *status)
{
    static const struct { const char *name; void *function; } known[] = {
        {"cuInit", (void *)cuInit},
        {"cuDriverGetVersion", (void *)cuDriverGetVersion},
        {"cuModuleLoadData", (void *)cuModuleLoadData},
        {"cuModuleGetFunction", (void *)cuModuleGetFunction},
        {"cuLaunchKernel", (void *)cuLaunchKernel},
        {"cuGetProcAddress", (void *)cuGetProcAddress_v2},
    };
    (void)version, (void)flags;
    *found = NULL;
    for (size_t number = 0; number < sizeof known / sizeof *known; number++)
        if (!strcmp(symbol, known[number].name))
            *found = known[number].function;
    if (status)
        *status = *found == NULL;
    return *found ? 0 : NOT_FOUND;
}
