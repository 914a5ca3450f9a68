import random,sys
from planner.space.predictions import predictions
from tests.test_rehearsal import *
from profiles.library import load_sizes
if __name__=="__main__":
    model=load_model("llama-3.2-1b") if False else load_model("llama-3.1-8b")
    draw=random.Random(int(sys.argv[1])); jobs=[]; pr=[]
    for n in (8,64):
        at=setting(load_sizes("llama-3.1-8b"),load_device("h100-sxm"),n,4*n,2048)
        sp=explore(at,Options(offload=("none",)))
        pl=best_places(sp,len(sp.best)); draw.shuffle(pl)
        k=0
        for p in pl:
            plan=plan_of(sp,p)
            if refusal(plan,model_facts(at),2048) or plan.num_microbatches>16 : continue
            place=draw.randrange(plan.pipeline_parallel)
            st=1
            for a in plan.axis_order[:plan.axis_order.index("pipeline")]: st*=plan.degree(a)
            jobs.append((plan,model.workload,2048,place*st)); pr.append(predictions(sp,[p])[0])
            k+=1
            if k==int(sys.argv[2]): break
    for (plan,_,_,r),p,own in zip(jobs,pr,rehearse(jobs)):
        s=p.stage_peak_bytes; e=s[own.place["pipeline"]] if len(s)==plan.pipeline_parallel else p.peak_bytes
        print(f"{e/own.peak_bytes-1:+.3f} {e/2**30:.2f} {own.peak_bytes/2**30:.2f} {plan.id} place {own.place['pipeline']}",flush=True)
