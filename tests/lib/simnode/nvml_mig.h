/* Multi-instance GPUs. A MIG device is one compute instance of one GPU instance. */

#define GPU_INSTANCE_PROFILES 0x12 /* NVML_GPU_INSTANCE_PROFILE_COUNT */
#define COMPUTE_INSTANCE_PROFILES 0x9

static int is_gfx(uint32_t kind) { return (kind >= 0xA && kind <= 0xC) || kind == 0x11; }

/* The GPU's MIG mode is on, or why not. */
static int in_mig_mode(const struct gpu *gpu) {
    TRY(gpu->mig_mode.ret);
    return gpu->mig_mode.value[0] ? SUCCESS : NOT_SUPPORTED;
}

API int nvmlDeviceIsMigDeviceHandle(handle_t device, unsigned *out) {
    DEVICE(device);
    return put_number((struct number){SUCCESS, d.mig != NULL}, out);
}

API int nvmlDeviceGetMigDeviceHandleByIndex(handle_t device, unsigned index, handle_t *out) {
    GPU(device);
    NEED(out);
    TRY(d.gpu->mig_mode.ret);
    if (!d.gpu->max_mig_devices.ret && index >= d.gpu->max_mig_devices.value) return INVALID_ARGUMENT;
    for EACH (i, MIG_COUNT)
        if ((int)MIGS[i].gpu == d.index && MIGS[i].index == index) {
            *out = &mig_handles[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

API int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle_t device, handle_t *out) {
    DEVICE(device);
    NEED(out);
    if (!d.mig) return INVALID_ARGUMENT;
    *out = &gpu_handles[d.index];
    return SUCCESS;
}

API int nvmlDeviceGetGpuInstanceId(handle_t device, unsigned *out) {
    DEVICE(device);
    return d.mig ? put_number(d.mig->gpu_instance_id, out) : INVALID_ARGUMENT;
}

API int nvmlDeviceGetComputeInstanceId(handle_t device, unsigned *out) {
    DEVICE(device);
    return d.mig ? put_number(d.mig->compute_instance_id, out) : INVALID_ARGUMENT;
}

/* Engines are not described: none. */
API int nvmlDeviceGetAttributes_v2(handle_t device, struct attributes *out) {
    DEVICE(device);
    NEED(out);
    if (!d.mig) return INVALID_ARGUMENT;
    TRY(d.mig->attributes.ret);
    memset(out, 0, sizeof *out);
    out->gpu_instance_slices = d.mig->attributes.gpu_instance;
    out->compute_instance_slices = d.mig->attributes.compute_instance;
    out->memory_mib = d.mig->attributes.memory_mib;
    return SUCCESS;
}

/* GPU instances. The handle of one is that of its first MIG device. */

static int is_first_of_gpu_instance(unsigned at) {
    for EACH (i, at)
        if (MIGS[i].gpu == MIGS[at].gpu && MIGS[i].gpu_instance_id.value == MIGS[at].gpu_instance_id.value) return 0;
    return !MIGS[at].gpu_instance_id.ret;
}

static int gpu_instance_profile(const struct device *device, unsigned kind, struct gpu_instance_profile_info_v2 *out) {
    TRY(in_mig_mode(device->gpu));
    if (kind >= GPU_INSTANCE_PROFILES) return INVALID_ARGUMENT;
    for EACH (i, MIG_COUNT) {
        const struct profile *profile = &MIGS[i].gpu_instance_profile;
        if ((int)MIGS[i].gpu != device->index || profile->ret || profile->kind != kind) continue;
        memset(out, 0, sizeof *out);
        out->version = VERSION(struct gpu_instance_profile_info_v2, 2);
        out->id = profile->id;
        out->slices = profile->slices;
        out->instances = profile->slices ? (uint32_t)device->gpu->max_mig_devices.value / profile->slices : 0;
        out->memory_mib = profile->memory_mib;
        snprintf(out->name, sizeof out->name, "MIG %ug.%ugb%s", profile->slices, (profile->memory_mib + 1023) / 1024,
                 is_gfx(kind) ? "+gfx" : "");
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

API int nvmlDeviceGetGpuInstanceProfileInfoV(handle_t device, unsigned kind, struct gpu_instance_profile_info_v2 *out) {
    GPU(device);
    NEED(out);
    if (out->version != VERSION(struct gpu_instance_profile_info_v2, 2)) return ARGUMENT_VERSION_MISMATCH;
    return gpu_instance_profile(&d, kind, out);
}

API int nvmlDeviceGetGpuInstanceProfileInfo(handle_t device, unsigned kind, struct gpu_instance_profile_info *out) {
    struct gpu_instance_profile_info_v2 found;
    GPU(device);
    NEED(out);
    TRY(gpu_instance_profile(&d, kind, &found));
    memset(out, 0, sizeof *out);
    out->id = found.id;
    out->slices = found.slices;
    out->instances = found.instances;
    out->memory_mib = found.memory_mib;
    return SUCCESS;
}

API int nvmlDeviceGetGpuInstances(handle_t device, unsigned profile_id, handle_t *out, unsigned *count) {
    GPU(device);
    NEED(out && count);
    TRY(in_mig_mode(d.gpu));
    *count = 0;
    for EACH (i, MIG_COUNT) {
        const struct profile *profile = &MIGS[i].gpu_instance_profile;
        if ((int)MIGS[i].gpu == d.index && !profile->ret && profile->id == profile_id && is_first_of_gpu_instance(i))
            out[(*count)++] = &gpu_instance_handles[i];
    }
    return SUCCESS;
}

API int nvmlDeviceGetGpuInstanceById(handle_t device, unsigned id, handle_t *out) {
    GPU(device);
    NEED(out);
    TRY(in_mig_mode(d.gpu));
    for EACH (i, MIG_COUNT)
        if ((int)MIGS[i].gpu == d.index && is_first_of_gpu_instance(i) && MIGS[i].gpu_instance_id.value == id) {
            *out = &gpu_instance_handles[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

API int nvmlGpuInstanceGetInfo(handle_t instance, struct gpu_instance_info *out) {
    const struct mig *mig;
    TRY(begin_instance(__func__, gpu_instance_handles, instance, &mig));
    NEED(out);
    TRY(mig->gpu_instance_profile.ret);
    memset(out, 0, sizeof *out);
    out->device = &gpu_handles[mig->gpu];
    out->id = (uint32_t)mig->gpu_instance_id.value;
    out->profile_id = mig->gpu_instance_profile.id;
    out->placement = (struct placement){mig->gpu_start, mig->gpu_instance_profile.slices};
    return SUCCESS;
}

/* Compute instances. */

static int is_sibling(const struct mig *a, const struct mig *b) {
    return a->gpu == b->gpu && a->gpu_instance_id.value == b->gpu_instance_id.value;
}

static int compute_profile(const struct mig *mig, unsigned kind, unsigned engine, struct compute_instance_profile_info *out) {
    if (kind >= COMPUTE_INSTANCE_PROFILES || engine) return INVALID_ARGUMENT;
    for EACH (i, MIG_COUNT) {
        const struct profile *profile = &MIGS[i].compute_instance_profile;
        if (!is_sibling(&MIGS[i], mig) || profile->ret || profile->kind != kind) continue;
        memset(out, 0, sizeof *out);
        out->id = profile->id;
        out->slices = profile->slices;
        out->instances = profile->slices ? mig->gpu_instance_profile.slices / profile->slices : 0;
        return SUCCESS;
    }
    return NOT_SUPPORTED;
}

API int nvmlGpuInstanceGetComputeInstanceProfileInfo(handle_t instance, unsigned kind, unsigned engine,
                                                     struct compute_instance_profile_info *out) {
    const struct mig *mig;
    TRY(begin_instance(__func__, gpu_instance_handles, instance, &mig));
    NEED(out);
    return compute_profile(mig, kind, engine, out);
}

API int nvmlGpuInstanceGetComputeInstanceProfileInfoV(handle_t instance, unsigned kind, unsigned engine,
                                                      struct compute_instance_profile_info_v2 *out) {
    struct compute_instance_profile_info found;
    const struct mig *mig;
    TRY(begin_instance(__func__, gpu_instance_handles, instance, &mig));
    NEED(out);
    if (out->version != VERSION(struct compute_instance_profile_info_v2, 2)) return ARGUMENT_VERSION_MISMATCH;
    TRY(compute_profile(mig, kind, engine, &found));
    memset(out, 0, sizeof *out);
    out->version = VERSION(struct compute_instance_profile_info_v2, 2);
    out->id = found.id;
    out->slices = found.slices;
    out->instances = found.instances;
    unsigned gigabytes = (mig->gpu_instance_profile.memory_mib + 1023) / 1024, all = mig->gpu_instance_profile.slices;
    if (found.slices == all) snprintf(out->name, sizeof out->name, "MIG %ug.%ugb", all, gigabytes);
    else snprintf(out->name, sizeof out->name, "MIG %uc.%ug.%ugb", found.slices, all, gigabytes);
    return SUCCESS;
}

API int nvmlGpuInstanceGetComputeInstances(handle_t instance, unsigned profile_id, handle_t *out, unsigned *count) {
    const struct mig *mig;
    TRY(begin_instance(__func__, gpu_instance_handles, instance, &mig));
    NEED(out && count);
    *count = 0;
    for EACH (i, MIG_COUNT) {
        const struct profile *profile = &MIGS[i].compute_instance_profile;
        if (is_sibling(&MIGS[i], mig) && !profile->ret && profile->id == profile_id)
            out[(*count)++] = &compute_instance_handles[i];
    }
    return SUCCESS;
}

API int nvmlGpuInstanceGetComputeInstanceById(handle_t instance, unsigned id, handle_t *out) {
    const struct mig *mig;
    TRY(begin_instance(__func__, gpu_instance_handles, instance, &mig));
    NEED(out);
    for EACH (i, MIG_COUNT)
        if (is_sibling(&MIGS[i], mig) && !MIGS[i].compute_instance_id.ret && MIGS[i].compute_instance_id.value == id) {
            *out = &compute_instance_handles[i];
            return SUCCESS;
        }
    return NOT_FOUND;
}

API int nvmlComputeInstanceGetInfo_v2(handle_t instance, struct compute_instance_info *out) {
    const struct mig *mig;
    TRY(begin_instance(__func__, compute_instance_handles, instance, &mig));
    NEED(out);
    TRY(mig->compute_instance_profile.ret);
    memset(out, 0, sizeof *out);
    out->device = &gpu_handles[mig->gpu];
    for EACH (i, MIG_COUNT)
        if (is_sibling(&MIGS[i], mig) && is_first_of_gpu_instance(i)) out->gpu_instance = &gpu_instance_handles[i];
    out->id = (uint32_t)mig->compute_instance_id.value;
    out->profile_id = mig->compute_instance_profile.id;
    out->placement = (struct placement){mig->compute_start, mig->compute_instance_profile.slices};
    return SUCCESS;
}
