/* Makes a model's input of what callers sent, one element a turn: see engines/preparation.py, which does the same on the
 * CPU and to whose bits this is tested.
 *
 * Compiled with SOURCE and TARGET as integer types of the right size (floating-point numbers come as bits, out of the
 * table) and PIXELS as 1 if `table` holds what each of 256 pixels becomes, per channel, or 0 if elements are only
 * widened.
 */
#ifdef __cplusplus
extern "C"
#endif
__global__ void prepare(
    const SOURCE *source,
    TARGET *target,
    const TARGET *table,   /* (rows, 256), rows being 1 or channels */
    unsigned int count,    /* elements, below 2^31 */
    unsigned int channels, /* length of the channel axis; 1 if there is none */
    unsigned int inner,    /* elements of the target in one channel: what follows the channel axis */
    unsigned int rows,     /* of the table */
    unsigned int moved)    /* whether the channels are last in the source and before `inner` in the target */
{
    const unsigned int stride = gridDim.x * blockDim.x;
    for (unsigned int at = blockIdx.x * blockDim.x + threadIdx.x; at < count; at += stride) {
        const unsigned int place = at % inner;
        const unsigned int channel = at / inner % channels;
        const unsigned int from = moved ? at - channel * inner - place + place * channels + channel : at;
        const SOURCE value = source[from];
#if PIXELS
        target[at] = table[(rows > 1 ? channel * 256 : 0) + value];
#else
        target[at] = (TARGET)value;
#endif
    }
}
