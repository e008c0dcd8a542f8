/* What the Python bindings of TensorRT want from its libraries, so that they can be imported where these are not.

   With RTX_CORE, RTX_PARSER and RTX_VERSION in the environment, calls go to the libraries of TensorRT for RTX. Both are
   built from the same C++ interfaces; only each refuses the version number of the other, which is replaced here. */

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

static void* find(const char* library, const char* function)
{
    const char* path = getenv(library);
    void* handle = path ? dlopen(path, RTLD_NOW | RTLD_GLOBAL) : NULL;
    void* found = handle ? dlsym(handle, function) : NULL;
    if (!found) {
        fprintf(stderr, "%s: no library to call\n", function);
        exit(4);
    }
    return found;
}

static int version(void)
{
    return atoi(getenv("RTX_VERSION"));
}

typedef void* (*Create)(void*, int);
typedef void* (*CreateFor)(void*, void*, int);

void* createInferBuilder_INTERNAL(void* logger, int asked)
{
    (void)asked;
    return ((Create)find("RTX_CORE", __func__))(logger, version());
}

void* createInferRuntime_INTERNAL(void* logger, int asked)
{
    (void)asked;
    return ((Create)find("RTX_CORE", __func__))(logger, version());
}

void* createInferRefitter_INTERNAL(void* engine, void* logger, int asked)
{
    (void)asked;
    return ((CreateFor)find("RTX_CORE", __func__))(engine, logger, version());
}

void* createNvOnnxParser_INTERNAL(void* network, void* logger, int asked)
{
    return ((CreateFor)find("RTX_PARSER", __func__))(network, logger, asked);
}

void* createNvOnnxParserRefitter_INTERNAL(void* refitter, void* logger, int asked)
{
    return ((CreateFor)find("RTX_PARSER", __func__))(refitter, logger, asked);
}

void* getBuilderPluginRegistry(int capability)
{
    return ((void* (*)(int))find("RTX_CORE", __func__))(capability);
}

void* getPluginRegistry(void)
{
    return ((void* (*)(void))find("RTX_CORE", __func__))();
}

int getNvOnnxParserVersion(void)
{
    return ((int (*)(void))find("RTX_PARSER", __func__))();
}

int initLibNvInferPlugins(void)
{
    return 1;
}
